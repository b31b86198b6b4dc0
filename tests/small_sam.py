"""A SAM of the official classes with random weights, small enough for every test."""

from __future__ import annotations

from typing import Any

import torch

from samdistill.teacher import Teacher
from samdistill.teacher.load import state_sha256


def small_sam(seed: int = 0) -> Any:
    """Side 128, 8 x 8 tokens of width 64, low-resolution masks of 32 x 32."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    torch.manual_seed(seed)
    sam = Sam(
        ImageEncoderViT(img_size=128, embed_dim=32, depth=1, num_heads=2, out_chans=64, window_size=0),
        PromptEncoder(64, (8, 8), (128, 128), 16),
        MaskDecoder(transformer_dim=64, transformer=TwoWayTransformer(2, 64, 4, 128), iou_head_hidden_dim=64),
    )
    # Fresh weights make all masks alike; these differ from point to point, as a trained decoder's do.
    with torch.no_grad():
        for embedding in sam.prompt_encoder.point_embeddings:
            embedding.weight.mul_(0.1)
        sam.mask_decoder.mask_tokens.weight.mul_(0.3)
        for layer in sam.mask_decoder.transformer.layers:
            layer.self_attn.v_proj.weight.mul_(3)
            layer.cross_attn_token_to_image.q_proj.weight.mul_(6)
            layer.cross_attn_token_to_image.v_proj.weight.mul_(3)
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(400)
        sam.mask_decoder.iou_prediction_head.layers[-1].weight.mul_(4)
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(1.2)
    return sam.eval()


def small_teacher(seed: int = 0) -> Teacher:
    """A Teacher around `small_sam`."""
    sam = small_sam(seed)
    return Teacher("small", sam, weights_sha256=state_sha256(sam.state_dict()))
