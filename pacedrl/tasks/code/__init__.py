"""The verifier ``code``: runs code and its tests in sandboxes."""
