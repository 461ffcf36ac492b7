"""What is known of TensorRT without running it: supported types, engine files, golden files."""
