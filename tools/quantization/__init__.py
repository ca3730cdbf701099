"""The offline quantizer, part by part; `evort_tools.quantize` puts them together.

    data        calibration samples, one by one, from files, folders, arrays or iterables
    capture     runs a float model and hands the values of its tensors to observers
    observers   what is kept of a tensor: a histogram that widens, extremes, averages
    ranges      from a histogram to the range that is represented
    encodings   a range made integers: dtype, scale, zero point
    qdq         writes encodings into a graph as QuantizeLinear and DequantizeLinear
    static      which tensors of a graph get which encoding
    integers    the integer model of a calibrated one, without casts as nodes of their own
    by_range    embeddings, recurrent layers and attention, which the static scheme takes from the dynamic one
    nested      branches of If, bodies of Loop and Scan: calibrated on what runs bring to them
    latency     times of layers in each precision: measured, or from a file
    placement   what is slower in integers stays in float: a minimum cut
    metric      the user's metric, and what may be lost
    accuracy    undoes the worst layers of a static model until the target holds
    precisions  what a layer can be; the model with some of it
    knapsack    one choice for each layer, under limits
    search      the best precisions of all layers
    mixed       the scheme that does so

A graph with QuantizeLinear/DequantizeLinear pairs is the one form in which a quantization is stated; the pass
`integers` turns it into integer operators.
"""
