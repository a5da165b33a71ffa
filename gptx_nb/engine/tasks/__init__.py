"""One module a task: how an example becomes tokens, how outputs become an answer, how answers are scored."""
