// The topics of the module, one register_*.cpp each.
#pragma once

#include <pybind11/pybind11.h>

void register_assignment(pybind11::module_& module);
void register_components(pybind11::module_& module);
void register_cover(pybind11::module_& module);
void register_images(pybind11::module_& module);
void register_masks(pybind11::module_& module);
void register_prompts(pybind11::module_& module);
