"""Running a compiled model: in this process, or in the C++ runner."""
