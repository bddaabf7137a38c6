"""Chains of stages: the scripts of a whole paper in their order, by one command.

A chain is a YAML file (:mod:`speechbrain_ext.chains.stages`), which is shown as a plan
(:mod:`~speechbrain_ext.chains.plan`) and run (:mod:`~speechbrain_ext.chains.runner`);
the figures of its verifications are put into one table
(:mod:`~speechbrain_ext.chains.results`).
"""
