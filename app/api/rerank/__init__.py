"""Reranking, in the forms of Cohere, Jina and Text Embeddings Inference."""
