"""Does a quality predict recognition errors? Error-versus-discard curves, their areas, and intervals for them.

Sources: "crfiqa" is the rule of CR-FIQA's scripts; "rethresholded" is ours, alike but that no FMR exceeds its target;
"fixed-threshold" is the rule of Schlett et al., arXiv 2303.13294; "normalised" that of FaceQAN and FROQ. Qualities
here are always higher = better: negate a distance.
"""
