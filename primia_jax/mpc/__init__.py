"""Secret sharing and its arithmetic: pure functions of arrays.

Everything here works on 64-bit words, which JAX allows only inside `ring.x64()`; the global flag
would turn the float32 defaults of training into float64.
"""
