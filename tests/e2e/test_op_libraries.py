"""Operations that are not TensorFlow's own are loaded where the artifact is compared, too."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_export_callbacks import ExportArchive, Exporter
from keras_export_callbacks.archive.parity.c_library import op_libraries

SOURCE = """
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

REGISTER_OP("ExportTwice").Input("x: float").Output("y: float").SetShapeFn(
    [](tensorflow::shape_inference::InferenceContext* context) {
      context->set_output(0, context->input(0));
      return absl::OkStatus();
    });

class Twice : public tensorflow::OpKernel {
 public:
  explicit Twice(tensorflow::OpKernelConstruction* construction)
      : tensorflow::OpKernel(construction) {}
  void Compute(tensorflow::OpKernelContext* context) override {
    tensorflow::Tensor* twice = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &twice));
    twice->flat<float>() = 2.0f * context->input(0).flat<float>();
  }
};

REGISTER_KERNEL_BUILDER(Name("ExportTwice").Device(tensorflow::DEVICE_CPU), Twice);
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_an_endpoint_with_an_operation_of_ones_own_is_compared() -> None:
    Path("twice.cc").write_text(SOURCE)
    flags = [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]
    command = ["g++", "-shared", "-fPIC", "-O0", "-w", "twice.cc", "-o", "twice.so", *flags]
    subprocess.run(command, check=True)
    library = str(Path("twice.so").absolute())
    assert library not in op_libraries()
    operations = tf.load_op_library(library)
    assert library in op_libraries()

    def endpoints(archive: ExportArchive, model: Any) -> None:
        archive.add_endpoint(
            "serve", lambda x: operations.export_twice(x=model(x)), [tf.TensorSpec((None, 3))]
        )

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    sample = np.ones((2, 3), "float32")
    with Exporter("base", model, endpoints=endpoints, sample_inputs=sample, log_dir=None) as made:
        record = made.export().result()
    assert record.parity is not None
    assert record.parity.differences["serve/output_0"] == 0.0
