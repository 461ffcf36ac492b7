"""Publishing an artifact on the Hugging Face Hub, with what was proven of it."""
