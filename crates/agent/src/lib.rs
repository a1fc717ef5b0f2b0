//! Per host: one actor per instance, adoption after restart, and sweeping of leaks.
