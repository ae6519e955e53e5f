"""HTTP: dialects parse requests, call the service and encode responses."""
