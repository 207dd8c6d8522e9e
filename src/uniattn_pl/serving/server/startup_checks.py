"""What can be known of a model before its weights are read: its files, and how long a text may get."""

from __future__ import annotations

from transformers import AutoConfig

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import without_encoder
from uniattn_pl.families.positions import positions_of
from uniattn_pl.modeling.conversion.auto_classes import register_type_of
from uniattn_pl.modeling.loading.pretrained import check_folder
from uniattn_pl.modeling.loading.weight_files import checked_base
from uniattn_pl.serving.server.serve_request import ServeRequest


def check_served(request: ServeRequest) -> None:
    """Check that our own server can serve a folder.

    Raises:
        UserError: as `check_folder`, the model has an encoder, or texts are to be longer than the model has positions.
    """
    check_folder(request.source)
    folder = checked_base(request.source)
    register_type_of(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    without_encoder(config, "the server")
    positions = positions_of(config)
    if request.tokens is not None and positions is not None and request.tokens > positions:
        raise UserError(
            f"--max-model-len {request.tokens} is more than the {positions} positions of '{request.source}', which was "
            "not trained on what lies beyond."
        )
