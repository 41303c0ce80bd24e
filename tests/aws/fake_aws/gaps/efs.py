"""EFS: file system policies can be deleted, backup policies be put."""

import json
from typing import Any

from moto.efs.models import FileSystem
from moto.efs.responses import EFSResponse

from fake_aws.world import World

_JSON = {"Content-Type": "application/json"}


def fill(world: World) -> None:
    """See gaps."""
    given = FileSystem.backup_policy

    def backup_policy(self: Any) -> Any:
        return getattr(self, "_put_policy", None) or given.fget(self)

    def put_backup_policy(self: Any) -> Any:
        system = self.efs_backend.file_systems_by_id[self._get_param("FileSystemId")]
        system._put_policy = self._get_param("BackupPolicy")
        return json.dumps({"BackupPolicy": system._put_policy}), _JSON

    def delete_file_system_policy(self: Any) -> Any:
        self.efs_backend.file_systems_by_id[self._get_param("FileSystemId")].file_system_policy = None
        return "{}", _JSON

    FileSystem.backup_policy = property(backup_policy)
    EFSResponse.put_backup_policy = put_backup_policy
    EFSResponse.delete_file_system_policy = delete_file_system_policy
