"""TensorRT: engines built in a child process without a GPU, and run where there is one."""
