"""Settings of kohya's scripts that are no part of a recipe, by why they are not.

Read from kohya-ss/sd-scripts at commit 48d368f (library/train_util.py) and bmaltais/kohya_ss at commit 8a524c7
(kohya_gui/lora_gui.py).
"""

OF_THAT_MACHINE = (
    "train_data_dir", "reg_data_dir", "output_dir", "output_name", "logging_dir", "logging_path", "vae",
    "tokenizer_cache_dir", "in_json", "dataset_config", "config_file", "output_config",
    "conditioning_data_dir",
    "image_dir", "metadata_file", "wandb_api_key", "wandb_run_name", "log_tracker_name", "log_tracker_config",
    "log_with", "log_prefix", "log_config", "huggingface_repo_id", "huggingface_token", "huggingface_repo_type",
    "huggingface_path_in_repo", "huggingface_repo_visibility", "training_comment", "metadata_author",
    "metadata_title", "metadata_description", "metadata_license", "metadata_tags", "extra_accelerate_launch_args",
    "gpu_ids", "main_process_port", "model_list", "class_tokens", "name_or_path", "use_wandb",
    "save_state_to_huggingface", "resume_from_huggingface", "async_upload", "session_id", "training_started_at",
    "training_finished_at", "sd_model_name", "vae_name", "sd_model_hash", "new_sd_model_hash", "vae_hash",
    "new_vae_hash", "sd_scripts_commit_hash", "tag_frequency", "dataset_dirs", "reg_dataset_dirs", "bucket_info",
    "base_model_version", "ae", "clip_l", "clip_g", "t5xxl",
)  # fmt: skip
DECIDED_HERE = (
    "xformers", "mem_eff_attn", "sdpa", "gradient_checkpointing", "cpu_offload_checkpointing", "cache_latents",
    "cache_latents_to_disk", "skip_cache_check", "cache_text_encoder_outputs",
    "cache_text_encoder_outputs_to_disk", "vae_batch_size", "lowram", "highvram", "max_data_loader_n_workers",
    "persistent_data_loader_workers", "no_half_vae",
    "num_cpu_threads_per_process", "num_processes", "num_machines", "multi_gpu", "dynamo_backend", "dynamo_mode",
    "dynamo_use_dynamic", "dynamo_use_fullgraph", "torch_compile", "caption_extension", "caption_extention",
    "save_model_as", "use_safetensors", "text_encoder_batch_size",
    "disable_mmap_load_safetensors", "ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph",
    "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale", "cache_info",
    "save_every_n_epochs", "save_last_n_epochs", "save_last_n_steps", "save_state", "save_last_n_epochs_state",
    "save_last_n_steps_state", "save_state_on_train_end", "sample_sampler", "no_metadata", "v2",
    "zero_terminal_snr", "use_shell", "print_only", "headless", "num_train_images", "num_reg_images",
    "fp8_base", "fp8_base_unet", "blocks_to_swap", "single_blocks_to_swap", "double_blocks_to_swap", "mem_eff_save",
    "blockwise_fused_optimizers", "fused_backward_pass", "t5xxl_device", "t5xxl_dtype", "save_clip", "save_t5xxl",
    "model_type", "show_timesteps", "show_timesteps_resolution",
    "num_batches_per_epoch", "num_epochs", "num_validation_images", "epoch_done", "steps", "total_batch_size",
)  # fmt: skip
# Values that mean nothing, or that what is mapped above already says.
USUAL: dict[str, object] = {
    "huber_scale": 1.0, "lr_scheduler_power": 1, "lr_scheduler_num_cycles": 1, "unit": 1, "train_on_input": True,
    "caption_separator": ",", "multires_noise_discount": 0.3, "noise_offset_type": "Original", "token_warmup_min": 1,
    "weighting_scheme": "uniform", "logit_mean": 0.0, "logit_std": 1.0, "mode_scale": 1.29, "dataset_repeats": 1,
    "huber_schedule": "snr", "huber_c": 0.1, "save_as_bool": False, "LyCORIS_preset": "full",
    "constrain": 0.0, "factor": -1, "max_timestep": 1000, "loss_type": "l2",
}  # fmt: skip
