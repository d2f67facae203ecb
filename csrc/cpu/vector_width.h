// The vector width and register file of the instruction set that PRUNEKIT_ISA names; for files compiled per set.
#pragma once

#ifndef PRUNEKIT_ISA
#error "PRUNEKIT_ISA names the instruction set this file is compiled for"
#endif
#if defined(PRUNEKIT_VECTOR_BYTES)  // of another processor, for tests that emulate its instructions
#define VECTOR_BYTES PRUNEKIT_VECTOR_BYTES
#define WIDE_REGISTER_FILE 1
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#define WIDE_REGISTER_FILE 1
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define WIDE_REGISTER_FILE 0
#else
#define VECTOR_BYTES 16
#if defined(__aarch64__)
#define WIDE_REGISTER_FILE 1
#else
#define WIDE_REGISTER_FILE 0
#endif
#endif
#define STRINGIZE_(x) #x
#define STRINGIZE(x) STRINGIZE_(x)
#define ALWAYS_INLINE inline __attribute__((always_inline))
// Pretend to change the vector, so that it has to be in a register here.
#if defined(PRUNEKIT_VECTOR_BYTES)
#define KEEP_IN_REGISTER(v)
#elif defined(__AVX512F__)
#define KEEP_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define KEEP_IN_REGISTER(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define KEEP_IN_REGISTER(v) asm("" : "+w"(v))
#else
#define KEEP_IN_REGISTER(v)
#endif
