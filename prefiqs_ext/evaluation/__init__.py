"""Does a quality predict recognition errors? Error-versus-discard curves, their areas, and intervals for them.

Sources: The three conventions are those of CR-FIQA and GraFIQs ("fraunhofer"), of Schlett et al., arXiv 2303.13294
("dasec"), and of FaceQAN and FROQ ("normalised"). Qualities here are always higher = better: negate a distance.
"""
