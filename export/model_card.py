"""The model card: what a person has to know before using a bundle, written from its manifest."""

from __future__ import annotations

from samdistill.manifest import Manifest


def model_card(manifest: Manifest) -> str:
    """Write the card, Markdown."""
    parity, provenance = manifest.parity, manifest.provenance
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
        f"| precision | {manifest.models.student.precision} |",
        f"| strategy | {provenance.get('strategy', 'not stated')} |",
        f"| training steps | {provenance.get('steps', 'not stated')} |",
        f"| seed | {provenance.get('seed', 'not stated')} |",
        *(f"| images, {part.replace('_', ' ')} | {count} |" for part, count in images.items()),
        f"| data fingerprint | {provenance.get('data_fingerprint', 'not stated')} |",
        f"| licence of the weights | {manifest.licence} |",
        "",
        "## Equal to the original",
        "",
        f"On {parity['images']} validation images the masks agree with PyTorch's with a mean Dice of "
        f"{parity['mean_dice']:.5f} (worst mask {parity['worst_dice']:.5f}); logits differ by at most "
        f"{parity['max_logit_difference']:.2g}. This says that the export is faithful, not that the "
        "masks are right: measure that with `samdistill evaluate` on labelled images of your own.",
        "",
        "## Limits",
        "",
        "It knows images like those it was trained on, and gives an answer for any other without a warning. "
        "It is no medical device: no decision about a patient may rest on it alone.",
        "",
    ]
    return "\n".join(lines)
