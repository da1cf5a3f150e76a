from ._attention import attention_symmetry as attention_symmetry
from ._ready import gated_mlp_symmetry as gated_mlp_symmetry
from ._ready import low_rank_symmetry as low_rank_symmetry
from ._ready import mlp_symmetry as mlp_symmetry
from ._ready import normalized_scale_symmetry as normalized_scale_symmetry
from ._ready import residual_cnn_symmetry as residual_cnn_symmetry
from ._ready import residual_stream_symmetry as residual_stream_symmetry
