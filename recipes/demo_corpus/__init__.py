"""A synthetic corpus in the layout of VoxCeleb, MUSAN, RIRS_NOISES, ASVspoof 5.

For trying out every recipe, from preparation to scoring, without a licence, a download
or a large disk. Its error rates say nothing about human speech.
"""

from demo_corpus.corpus import DemoCorpus, make_demo_corpus

__all__ = ["DemoCorpus", "make_demo_corpus"]
