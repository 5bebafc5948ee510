"""One module per verb: the only place where the parts are wired together. Module bodies import no torch."""
