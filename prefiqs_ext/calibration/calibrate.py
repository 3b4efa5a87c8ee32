"""Runs a network on faces and on degraded copies of them, and fits the calibrated score."""

from __future__ import annotations

import warnings
from os import PathLike

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefiqs_ext.calibration.copies import check_face_count, degrade_faces, draw_faces, measure
from prefiqs_ext.calibration.fit import Copies, Fit, Numbers, compute_angle, compute_logistic, fit, measure_area
from prefiqs_ext.calibration.scale import DISCARDED, Calibration, Prior, compute_features
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.inputs import Colour, ImageInput
from prefiqs_ext.models.preset import Preset
from prefiqs_ext.output import ScoreOutput
from prefiqs_ext.pruning import Pruning
from prefiqs_ext.scorer import Scorer
from prefiqs_ext.settings import Settings
from prefiqs_ext.utils.check_arguments import check_count

LEAST_FACES = 50  # different ones; with fewer, no family of degradations has copies enough to be left out
MOST_FACES = 1000
FEW_FACES = 200
_LAYERS = 9  # beside the embedding's
# Median angle between faces over that between a face and its degraded copy. On LFW, for SFace, w600k_mbf, FaceX-Zoo and
# dlib: 2.2 to 2.6 over all faces, 1.3 to 1.6 over pairs of one person.
_LEAST_SPREAD = 1.9
_LEAST_CORRELATION = 0.3


def calibrate(
    faces: ImageInput,
    model: str | PathLike[str] | nn.Module = "sface",
    pruning: Pruning = Pruning(),  # noqa: B008, frozen
    *,
    preset: Preset | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    output: int | str | None = None,
    colour: Colour = "rgb",
    seed: int = 0,
) -> Settings:
    """Fits a score of 0 to 100 to your faces and your network, without anyone's identity.

    >>> settings = prefiqs_ext.calibrate(sorted(Path("crops").glob("*.png")))  # doctest: +SKIP
    >>> scorer = prefiqs_ext.Scorer.from_settings(settings)  # doctest: +SKIP

    The score is 100 times the expected similarity of a face to a good image of the same face, see
    :class:`prefiqs_ext.calibration.scale.Calibration`. Up to 1,000 faces are drawn evenly, degraded in three ways each,
    and run through the network; the pruned branch is recalibrated on the faces as well.

    Args:
        faces: 50 or more different crops as they usually come, mostly good ones, of many people; images as
            :meth:`Scorer.forward` takes them. 500 are plenty.
        model: As for :class:`Scorer`, like pruning, preset, device, dtype and output.
        pruning: What the pruned branch loses.
        preset: The input that the network was trained on.
        device: Where to compute.
        dtype: What to compute in.
        output: Which of several outputs is the embedding.
        colour: "bgr" for tensors and arrays whose first channel is blue.
        seed: Of the degradations.

    Returns:
        Settings with the recalibration and the calibration, for :meth:`Scorer.from_settings`.

    Raises:
        InputError: Too few different faces, a network without a preset, or faces on which neither the norm of the
            embedding nor D tells degraded copies from good ones; also what :class:`Scorer` refuses.
    """
    check_count(seed, "seed", least=0)
    plain = Scorer(model, pruning, preset=preset, device=device, dtype=dtype, output=output)
    if plain.preset is None:
        raise InputError("calibrate: expected a network with a preset, whose images can be degraded; got none")
    crops = draw_faces(faces, plain.preset, MOST_FACES, device=plain.device, colour=colour)
    check_face_count(crops, LEAST_FACES, "calibrate")
    scorer = Scorer(
        model,
        pruning,
        recalibrate=crops.to(plain.device),
        layers=_choose_layers(plain.list_layers()),
        preset=plain.preset,
        device=plain.device,
        dtype=plain.dtype,
        output=output,
        on_bad="nan",
    )
    del plain
    found = measure(scorer, crops, "faces")
    good = found.distance.isfinite()
    if not bool(good.all()):
        crops = crops[good]
        found = ScoreOutput(*(field[good] for field in found))
        check_face_count(crops, LEAST_FACES, "calibrate")
    if len(crops) < FEW_FACES:
        warnings.warn(
            f"calibrate: {len(crops)} faces make a rough score; give 500 or more if you have them",
            UserWarning,
            stacklevel=2,
        )
    copies, kinds, face = degrade_faces(crops, seed)
    measured = measure(scorer, copies, "degraded copies")
    similarity = (measured.embedding * found.embedding[face]).sum(1).double().numpy()
    known = measured.distance.isfinite().numpy()
    _warn_of_few_people(found.embedding, similarity[known])
    prior = _choose_prior(measured, similarity, known)
    features = compute_features(prior, *_pick_signals(measured)).numpy()
    of = Copies(features, similarity, face.numpy(), tuple(kinds)).select(known)
    fitted = fit(of)
    _refuse_unrelated(fitted)
    calibration = _make_calibration(fitted, prior, scorer.layers, found)
    return scorer.settings.with_calibration(calibration)


def _choose_layers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Choose layers at even distances, the first among them but not the last, which gives the embedding."""
    count = min(_LAYERS, len(names) - 1)
    return tuple(names[round(index * (len(names) - 1) / max(count, 1))] for index in range(count))


def _choose_prior(measured: ScoreOutput, similarity: Numbers, known: NDArray[np.bool_]) -> Prior:
    """The norm, unless it is the same for all copies or does not rank them at all."""
    norm = measured.embedding_norm.double().numpy()[known]
    angle = compute_angle(similarity[known])
    varies = norm.std() > 1e-4 * norm.mean()  # float32 rounding of a norm of 1 is a hundred times less
    return "norm" if varies and measure_area(angle, norm) < angle.mean() else "distance"


def _pick_signals(measured: ScoreOutput) -> tuple[Tensor, Tensor, Tensor]:
    return measured.distance, measured.embedding_norm, measured.layer_norms


def _make_calibration(fitted: Fit, prior: Prior, layers: tuple[str, ...], found: ScoreOutput) -> Calibration:
    ranked = fitted.correction(compute_features(prior, *_pick_signals(found)).numpy())
    scores = 100 * compute_logistic(ranked, fitted.offset, fitted.slope)
    one, five, ten = np.quantile(scores, DISCARDED).tolist()
    correction = fitted.correction
    return Calibration(
        prior=prior,
        layers=layers,
        centre=tuple(correction.centre.tolist()),
        precision=tuple(map(tuple, correction.precision.tolist())),
        radius=correction.radius,
        correction=tuple(correction.coefficients.tolist()),
        offset=fitted.offset,
        slope=fitted.slope,
        error=100 * fitted.error,
        reliability=tuple((100 * expected, 100 * seen, count) for expected, seen, count in fitted.reliability),
        left_out=fitted.left_out,
        thresholds=(one, five, ten),
        faces=len(scores),
    )


def _warn_of_few_people(embedding: Tensor, similarity: Numbers) -> None:
    """Warn if embeddings [N, d] are about as near to each other as those of copies are to their faces' (cosine [M])."""
    count = len(embedding)
    cosines = (embedding @ embedding.T)[tuple(torch.triu_indices(count, count, 1))]
    between, own = np.degrees([np.median(compute_angle(cosine)) for cosine in (cosines.double().numpy(), similarity)])
    if between < _LEAST_SPREAD * own:
        warnings.warn(
            f"calibrate: the faces are as alike as photos of one person (median angle {between:.0f} degrees between "
            f"faces, {own:.0f} between a face and its degraded copy); give faces of many people, or check the preset",
            UserWarning,
            stacklevel=3,
        )


def _refuse_unrelated(fitted: Fit) -> None:
    """Refuse a fit whose expectations on faces left out do not follow what was found there."""
    expected, found, _ = np.array(fitted.reliability).T
    with np.errstate(invalid="ignore"):  # where all are equal, the correlation is NaN
        correlation = np.corrcoef(expected, found)[0, 1]
    if not correlation >= _LEAST_CORRELATION:
        raise InputError(
            "calibrate: what is expected of degraded copies does not follow what the network makes of them: use "
            "typical, mostly good faces, and check that the preset is the network's"
        )
