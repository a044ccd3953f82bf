"""`pacedrl init`: write a first configuration for the user's data and model."""
