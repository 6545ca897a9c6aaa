"""Which operators treat all positions of an axis alike, so that its indices may change places.

An operator does when reordering what goes in reorders what comes out, and nothing else, along every axis of which its
rule says more than that it is frozen. That is a fact about the operator beyond its relations: removal keeps the order.
Operators that are not listed, such as a user's own, may tell positions apart.
"""

from __future__ import annotations

MS = "com.microsoft"


def _names(text: str, domain: str = "") -> frozenset[str]:
    return frozenset(f"{domain}::{name}" if domain else name for name in text.split())


ELEMENTWISE = _names(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike "
    "Ceil Celu Clip Cos Cosh Div Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish "
    "Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul NaNToNum Neg Not Or PRelu Pow "
    "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh "
    "ThresholdedRelu Where Xor"
) | _names("BiasAdd BiasDropout BiasGelu BiasSplitGelu FastGelu Gelu QuickGelu", MS)
MOVEMENT = _names(
    "Compress Concat ConstantOfShape DepthToSpace Expand Flatten Gather GatherND Pad Reshape ScatterND Shape Size "
    "Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze"
) | _names("Pad", MS)
# What runs over the others' order is unmentioned by the rules, and so frozen: windows, sorted and running axes.
BESIDE = _names(
    "ArgMax ArgMin AveragePool CumProd CumSum GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample LpPool MaxPool "
    "Resize ReverseSequence RoiAlign TopK Trilu Upsample"
) | _names("NhwcMaxPool Trilu", MS)
PRODUCTS = _names("Conv ConvTranspose Einsum GRU Gemm LSTM MatMul RNN") | _names(
    "FusedConv FusedGemm FusedMatMul GemmFastGelu NhwcConv NhwcFusedConv", MS
)
QUANTIZED = _names(
    "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul QuantizeLinear"
) | _names(
    "DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul GatherBlockQuantized MatMulIntegerToFloat MatMulNBits "
    "QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul "
    "QLinearSigmoid QLinearWhere QuantizeLinear",
    MS,
)
ATTENTION = _names("Attention RotaryEmbedding") | _names(
    "Attention DecoderMaskedMultiHeadAttention GroupQueryAttention MultiHeadAttention QAttention RotaryEmbedding", MS
)
# A statistic over an axis does not depend on the order along it, where it is taken over the whole axis.
STATISTICS = _names(
    "BatchNormalization GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization "
    "LayerNormalization LogSoftmax LpNormalization MeanVarianceNormalization RMSNormalization ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare "
    "SimplifiedLayerNormalization Softmax"
) | _names(
    "BiasSoftmax EmbedLayerNormalization GroupNorm QLinearSoftmax SimplifiedLayerNormalization SkipGroupNorm "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization",
    MS,
)
CONTROL_FLOW = _names("Enter Join Stack Unstack", "onnxprune")
# Their mixing compares neighbors (LRN) or breaks ties by position (Hardmax); along the other axes all is alike.
MIXED_BY_POSITION = _names("Hardmax LRN")

ALIKE = (
    ELEMENTWISE | MOVEMENT | BESIDE | PRODUCTS | QUANTIZED | ATTENTION | STATISTICS | CONTROL_FLOW | MIXED_BY_POSITION
)
