//! The domain: ids, specs, states, admission, planner, placement, and the ports. No I/O, no clock, no async runtime.
