"""Programs that run in the environment of OpenVINO GenAI, which ``make bench OPENVINO=on`` installs.

Its packages do not include those of Tokenstream, so these modules import nothing else of this project.
"""
