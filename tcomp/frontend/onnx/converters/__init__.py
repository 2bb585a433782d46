"""One module per operator family; importing a module registers its converters."""
