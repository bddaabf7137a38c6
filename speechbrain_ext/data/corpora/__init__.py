"""One file a corpus: a function that says what its recordings are, and prepares them.

A new corpus is a function here and a YAML file that names it (``prepare: !name:``). The
function makes a :class:`~speechbrain_ext.data.prepare.pipeline.Row` of each recording;
:func:`~speechbrain_ext.data.prepare.pipeline.prepare` does the rest.
"""
