"""`pacedrl init`: a first configuration, written after a look at the data and the model."""
