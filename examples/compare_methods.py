"""Which quality predicts recognition errors best? python examples/compare_methods.py PEOPLE.

PEOPLE has one folder per person, of aligned faces of 112 x 112 pixels. Prints the table of `prefiqs evaluate`, and how
many mated pairs still fail at FMR 1e-3 once the worst 30 % of the pairs are discarded: LOWER is better.
"""

from __future__ import annotations

import sys

from prefiqs_ext.evaluation import EvaluationOptions, run_evaluation


def main(people: str) -> None:
    evaluation = run_evaluation(EvaluationOptions(people, methods=("prefiqs", "norm", "random"), resamples=0))
    print("\n".join(evaluation.format()))
    for result in evaluation.results:
        for method, curves in result.comparison.curves.items():
            curve = next(curve for curve in curves if curve.fmr == 1e-3)
            print(f"{method}: FNMR {curve.fnmr[0]:.4f} with all pairs, {curve.fnmr[-1]:.4f} at the end of the curve")


if __name__ == "__main__":
    main(sys.argv[1])
