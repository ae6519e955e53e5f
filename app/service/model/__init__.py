"""One loaded model: its files, parts, requests and answers in progress."""
