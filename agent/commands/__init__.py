"""The commands of `tandem`, one module per topic; heavy imports live inside the functions."""
