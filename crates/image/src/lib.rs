//! OCI reference to verified layers to one read-only EROFS disk, in one streaming pass; writable disks.
