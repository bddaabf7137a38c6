"""One file a corpus: where its recordings are, and how it is prepared."""
