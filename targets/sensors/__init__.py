"""Power, heat and clocks of the machine: sources behind one protocol, a process that samples them, and their energy.

`edgevlm.targets.sensors.find` opens what there is and says why the rest is not there; `log` samples it from a process
of its own while something else runs; `energy` integrates what was sampled.
"""
