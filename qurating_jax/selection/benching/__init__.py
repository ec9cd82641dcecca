"""The parts of `qurating bench select`: what a selection costs here, beside the programs that do the same."""
