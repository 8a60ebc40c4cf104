"""The Kubernetes API as this platform speaks it: plain dicts in the API's own JSON, through the official client."""
