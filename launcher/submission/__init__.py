"""From composed members to a queue: resources, batch scripts, snapshots of the code, receipts."""
