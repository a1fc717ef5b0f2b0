//! Store on memory and SQLite, held to one contract suite.
