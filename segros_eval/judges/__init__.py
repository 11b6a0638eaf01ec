"""Vision language models as judges: the client, and a vLLM server of our own."""
