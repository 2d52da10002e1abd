/* Where the partitions of a disk are: MBR, with logical ones, and GPT. */
#ifndef NBD_PARTITION_H
#define NBD_PARTITION_H
#include <stdint.h>

struct img_disk;
struct img_error;

struct nbd_partition {
    unsigned number;            /* as Linux counts */
    uint64_t off, len;          /* bytes, inside the disk */
};

enum { NBD_PARTITIONS_MAX = 256 };

/* Fills list, which has room for NBD_PARTITIONS_MAX.  Returns how many there
 * are (0 = no partition table), or a negative errno. */
int nbd_partitions(struct img_disk *disk, struct nbd_partition *list,
                   struct img_error *err);
#endif
