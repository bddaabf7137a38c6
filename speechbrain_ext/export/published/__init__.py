"""Published checkpoints → folders of this package: one module for each format.

A format is a module of this folder with

- ``TITLE``: what it holds, in words; ``LICENCE``: of the weights, in words;
- ``detect(tensors) -> bool``: whether tensors of these names and shapes are of it;
- ``convert(checkpoint, …) -> Converted``: the model. Its further parameters are the
  options that the format has;
- ``said_beside(path) -> bool``, where another format has the same tensors: whether the
  names of a file and its folder, or other files there, say that it is of this one.

:mod:`~speechbrain_ext.export.published.convert` finds the modules by itself;
:mod:`~speechbrain_ext.export.published.checkpoint` reads their files.
"""
