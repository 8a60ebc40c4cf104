"""Documents that users write: strict models, and the only definition of their fields."""
