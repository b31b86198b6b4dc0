"""The model card: what a person has to know before using a bundle, written from its manifest."""

from __future__ import annotations

from samdistill.export.golden import REAL
from samdistill.manifest import EngineRecord, Manifest
from samdistill.manifest_quality import ScoreRule


def model_card(manifest: Manifest) -> str:
    """Write the card, Markdown."""
    provenance = manifest.provenance
    images = provenance.get("images", {})
    lines = [
        f"# {manifest.name}",
        "",
        "A segmentation network with everything that belongs to it, published by samdistill "
        f"{manifest.versions['samdistill']}. `samdistill infer` runs it; `samdistill verify` checks it.",
        "",
        "| | |",
        "|---|---|",
        f"| classes | {', '.join(manifest.class_names)} |",
        f"| classes may overlap | {'yes' if manifest.multi_label else 'no'} |",
        f"| input | RGB or grey images of any size; shortest side resized to {manifest.input.size} px |",
        f"| pixels to 8 bits | {manifest.intensity.kind} |",
        f"| trained values | {manifest.models.student.parameters:,} |",
        f"| engines | {', '.join(_engines(manifest))} |",
        f"| strategy | {provenance.get('strategy', 'not stated')} |",
        f"| training steps | {provenance.get('steps', 'not stated')} |",
        f"| seed | {provenance.get('seed', 'not stated')} |",
        *(f"| images, {part.replace('_', ' ')} | {count} |" for part, count in images.items()),
        f"| data fingerprint | {provenance.get('data_fingerprint', 'not stated')} |",
        f"| real images inside | {sum(case.origin == REAL for case in manifest.golden) or 'none'} |",
        f"| licence of the weights | {manifest.licence} |",
        *_teacher(manifest),
        "",
        "## Equal to the original",
        "",
        "On validation images, each engine's masks against PyTorch's in fp32:",
        "",
        "| network | engine | masks | mean Dice | 1st percentile | empty on one side |",
        "|---|---|---|---|---|---|",
        *(_parity(engine) for engine in manifest.engines),
        "",
        "This says that the export is faithful, not that the masks are right: measure that with "
        "`samdistill evaluate` on labelled images of your own.",
        "",
        "## How far to trust an answer",
        "",
        *_trust(manifest),
        "",
        "## Limits",
        "",
        "It knows images like those it was trained on, and gives an answer for any other; a flag may warn of "
        "it, and may not. It is no medical device: no decision about a patient may rest on it alone.",
        "",
    ]
    return "\n".join(lines)


def _engines(manifest: Manifest) -> list[str]:
    own = [engine for engine in manifest.engines if engine.model == "student"]
    return [f"{engine.runtime} {engine.precision}" for engine in own]


def _teacher(manifest: Manifest) -> list[str]:
    teacher = manifest.teacher
    if teacher is None:
        return []
    return [
        f"| teacher | {teacher.name}, weights {teacher.weights_sha256[:16]} |",
        f"| licence of the teacher's weights | {teacher.licence} |",
    ]


def _trust(manifest: Manifest) -> list[str]:
    calibration, rule = manifest.calibration, manifest.quality
    if calibration is None or rule is None:
        return ["Exported without labelled validation images: nothing is calibrated, no answer is flagged."]
    temperatures = ", ".join(
        f"{name} {t:.2f}" for name, t in zip(manifest.class_names, calibration.temperatures, strict=True)
    )
    fitted = f"Fitted on {calibration.images} validation images. Temperatures: {temperatures}."
    lines = [f"{fitted} {_score(rule.student)}"]
    if manifest.routing is not None:
        lines += ["", f"Mode auto: {manifest.routing.reason}."]
    return lines


def _score(score: ScoreRule | None) -> str:
    if score is None:
        return "They are too few to learn a score from: no answer is flagged."
    # Where there is a score now, there were images to leave out; earlier bundles have their cards.
    assert score.rmse is not None
    assert score.accept is not None
    assert score.reject is not None
    told = f"The score estimates an image's Dice with an error of {score.rmse:.2f} on images left out."
    # Scores lie in 0..1; these bounds need not.
    accepted = f"An answer is accepted from a score of {score.accept:.2f} on"
    if score.accept > 1:
        accepted = "No score is high enough to accept an answer"
    elif score.accept <= 0:
        accepted = "An answer is accepted at any score"
    rejected = f"below {score.reject:.2f} it is rejected"
    if score.reject > 1:
        rejected = "none is high enough not to reject it"
    elif score.reject <= 0:
        rejected = "none is low enough to reject it"
    return f"{told} {accepted}; {rejected}."


def _parity(engine: EngineRecord) -> str:
    found = engine.parity
    if not found:
        return f"| {engine.model} | {engine.runtime} {engine.precision} | not run: no GPU was there | | | |"
    name = f"{engine.runtime} {engine.precision}" + ("" if engine.verified else ", unverified")
    return (
        f"| {engine.model} | {name} | {found['masks']} | "
        f"{found['mean_dice']:.5f} | {found['low_dice']:.5f} | {found['flips']} |"
    )
