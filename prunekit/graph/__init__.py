"""One reader of models: torch.export's graph, its nodes, and the channels that flow through it."""
