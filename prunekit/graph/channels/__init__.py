"""Which channels are tied to which, and which of them are constant."""

# Importing the rules fills their table.
from prunekit.graph.channels import layer_rules, movement_rules, pointwise_rules  # noqa: F401
