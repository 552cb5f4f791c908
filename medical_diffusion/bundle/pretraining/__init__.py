"""What the configurations of ``swin_unetr_pretrain`` call beside what all bundles share."""
