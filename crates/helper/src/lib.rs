//! The privileged protocol: a closed set of verbs, and what carries them out.
