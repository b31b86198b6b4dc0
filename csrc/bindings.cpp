// The module's table of contents: one register_ function a topic, no algorithm. Python has validated every
// argument before it comes here; arrays are noconvert, and the GIL is released around the work.
#include <pybind11/pybind11.h>

#include "register.h"
#include "version.h"

PYBIND11_MODULE(_core, module, pybind11::mod_gil_not_used()) {
  module.doc() = "samdistill's compiled core";
  module.def("version", &samdistill::version, "The version this module was built from.");
  register_assignment(module);
  register_components(module);
  register_cover(module);
  register_images(module);
  register_masks(module);
  register_prompts(module);
}
