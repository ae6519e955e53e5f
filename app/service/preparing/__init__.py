"""From the prompt of a request to tokens and sampling parameters."""
