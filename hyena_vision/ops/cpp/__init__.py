"""Long convolutions in C++ for the CPU, compiled on first use."""
